"""The Collatz task: what an answer should be, and how far a given answer is from it."""

import re

# An answer is numbers, each after one of the three separators of the training text.
ANSWER = re.compile(r"(?:(?:,| ->)? [0-9]+)+")
PROMPT = re.compile(r"([0-9]{1,18}):")
END_OF_TEXT = 256  # A token below it is a byte of UTF-8; the ones above do not occur in answers.
DIGITS_MAX = 30  # Far above any trajectory of a start below 5000; longer is no number to judge.


def step(n):
    """Returns the successor of n."""
    return n // 2 if n % 2 == 0 else 3 * n + 1


def trajectory(start):
    """Returns the numbers that follow `start`, up to and with the first 1."""
    numbers = []
    n = start
    while n != 1:
        n = step(n)
        numbers.append(n)
    return numbers


def text_of(token_ids):
    """Returns the text of byte tokens; a token that is no byte becomes U+FFFD."""
    if token_ids and token_ids[-1] == END_OF_TEXT:
        token_ids = token_ids[:-1]
    data = b"".join(bytes([t]) if 0 <= t < 256 else b"\xff" for t in token_ids)
    return data.decode("utf-8", errors="replace")


def start_of(prompt):
    """Returns the start that a prompt such as "27:" asks for, or None if it asks for none."""
    match = PROMPT.fullmatch(prompt)
    start = int(match.group(1)) if match else 0
    return start if start >= 1 else None


def judge(start, text, stopped):
    """Judges one answer.

    `stopped` says that the model ended it; otherwise its last number may be cut in two and is not
    judged. Returns (correct, steps, correct steps): an answer is correct when it is the trajectory
    from `start` and ends after 1; a step is correct when it follows from the number before it,
    which may itself be wrong. Nothing follows from 1.
    """
    numbers = re.findall(r"[0-9]+", text)
    if not stopped:
        numbers = numbers[:-1]
    right = 0
    before = start
    for digits in numbers:
        n = int(digits) if len(digits) <= DIGITS_MAX else None
        if n is not None and before not in (None, 1) and n == step(before):
            right += 1
        before = n
    wanted = [str(n) for n in trajectory(start)]
    correct = stopped and numbers == wanted and bool(ANSWER.fullmatch(text))
    return correct, len(numbers), right
