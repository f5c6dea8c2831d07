"""BPE's merges learned in seconds, not hours: what is learned stands in bpe.py."""

import heapq
from collections import Counter
from itertools import pairwise

from .command import progress_bar


def learn_merges(words, counts, wanted, new, progress=False, *, glue):
    """The merges of bpe.learn_merges_readable; each of them touches only the words that hold the pair.

    (1) `where` knows, for each pair, the words that may hold it.  (2) A merge creates only pairs that contain the new
    unit; the count of an older pair can only fall.  So each heap entry is at least as large as today's count: when
    the top of the heap is outdated, put it back with today's count and look again.  The first entry that is up
    to date is the true maximum, ties included, because the heap orders (-count, pair).
    """
    words, total, where = list(words), Counter(), {}
    for w, word in enumerate(words):
        for pair in pairwise(word):
            total[pair] += counts[w]
            where.setdefault(pair, set()).add(w)
    heap = [(-count, pair) for pair, count in total.items()]
    heapq.heapify(heap)

    merges = []
    with progress_bar("BPE" if progress else None, total=wanted, unit="merge") as bar:
        while heap and len(merges) < wanted:
            bound, pair = heapq.heappop(heap)
            count = total[pair]
            if count != -bound:
                if count > 0:
                    heapq.heappush(heap, (-count, pair))
                continue
            merges.append((pair, count))
            born = set()
            for w in where.pop(pair):
                word = words[w]
                glued = glue(word, pair, new)
                if len(glued) == len(word):
                    continue  # an earlier merge has used one of the pair's halves here
                for old in pairwise(word):
                    total[old] -= counts[w]
                for fresh in pairwise(glued):
                    total[fresh] += counts[w]
                    if new in fresh:
                        born.add(fresh)
                        where.setdefault(fresh, set()).add(w)
                words[w] = glued
            del total[pair]  # it is 0 now
            for fresh in born:
                heapq.heappush(heap, (-total[fresh], fresh))
            new += 1
            bar.update()
    return merges
