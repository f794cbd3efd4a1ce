# What a network plug-in makes of NetworkPolicies: the nft rules of one pod's network namespace. Only
# what opens a TCP connection is judged; what belongs to one passes, as the kernel's state is known to
# real plug-ins. Ingress only: the manifests have nothing else (manifests_test.py).

from manifests import named, of_kind, ports_of

MONITORING = {"kubernetes.io/metadata.name": "monitoring"}
TRAINER = {"rollcast-controller": "true"}


def matches(selector, labels):
    assert set(selector) <= {"matchLabels"}, selector
    return all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items())


def labels_of_namespace(objects):
    """As Kubernetes has them: the name is a label too."""
    metadata = named(objects, "Namespace", "rollcast")["metadata"]
    return {**metadata["labels"], "kubernetes.io/metadata.name": metadata["name"]}


def _may_come(peer, labels, space, own_space):
    if "namespaceSelector" in peer:
        if not matches(peer["namespaceSelector"], space):
            return False
    elif space != own_space:
        return False
    return matches(peer.get("podSelector", {}), labels)


def rules_for(workload, objects, others):
    """What nft is told for a pod of a workload; nothing if no policy selects it. `others` are the
    pods there are: (address, labels, labels of the namespace)."""
    labels = workload["spec"]["template"]["metadata"]["labels"]
    mine = [p["spec"] for p in of_kind(objects, "NetworkPolicy")
            if matches(p["spec"]["podSelector"], labels)]
    if not mine:
        return ""
    opened = []
    for rule in (rule for policy in mine for rule in policy.get("ingress", [])):
        addresses = {address for address, theirs, space in others for peer in rule["from"]
                     if _may_come(peer, theirs, space, labels_of_namespace(objects))}
        ports = [str(ports_of(workload)[p["port"]]) for p in rule["ports"]]
        if addresses:
            opened.append(f"ip saddr {{ {', '.join(sorted(addresses))} }} "
                          f"tcp dport {{ {', '.join(ports)} }} accept")
    lines = "\n".join(opened)
    return ("table inet policies {\n chain input {\n"
            "type filter hook input priority 0; policy accept;\n"
            'iifname "lo" accept\n'
            "tcp flags & (syn | ack) == syn jump opened\n}\n"
            f"chain opened {{\n{lines}\ndrop\n}}\n}}\n")
