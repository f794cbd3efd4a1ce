"""Adapters that put a Rollcast cluster under other projects' trainers: `trl`, `slime`, `verl`.

Each is imported by itself and needs its project only then.
"""
