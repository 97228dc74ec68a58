"""Spends its CPU time in known functions by known shares on any machine, beside a thread that runs without the GIL."""

import hashlib
import threading
import time


def burn(n):
    total = 0
    for i in range(n):
        total += i * i
    return total


def recurse(depth):
    if depth == 0:
        return burn(3000)
    return recurse(depth - 1)


class Work:
    def plain(self):
        return recurse(19)


def squares(n):
    for i in range(n):
        yield i * i


def generator():
    return sum(squares(3000))


def negate(x):
    return -x


def native():
    return len(sorted(range(2000), key=negate))


def hashes(data):
    return hashlib.sha256(data).digest()


def hasher():
    data = b"x" * 8_000_000
    while True:
        hashes(data)


def costs(functions):
    """The CPU time of a call of each: the median, because a busy machine interrupts some calls, and taken in turn, because
    it is slower for a while."""
    times = [[] for _ in functions]
    for _ in range(101):
        for function, taken in zip(functions, times):
            begin = time.thread_time()
            function()
            taken.append(time.thread_time() - begin)
    return [sorted(taken)[50] for taken in times]


def main(calls):
    while True:
        for function, count in calls:
            for _ in range(count):
                function()


shares = [(50, Work().plain), (30, generator), (20, native)]
taken = costs([function for _, function in shares])
calls = [(function, share / cost) for (share, function), cost in zip(shares, taken)]
# A round is some 200 calls, so that each share is right within half a percentage point.
calls = [(function, round(200 * count / sum(count for _, count in calls))) for function, count in calls]
threading.Thread(target=hasher, daemon=True).start()
main(calls)
