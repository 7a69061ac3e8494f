"""Words that augmentation leaves as they are: the English ones of TinyBERT (NLTK's list without question
words; those with an apostrophe are never one word here), and Chinese ones.
"""

ENGLISH = """
a about above after again against ain all am an and any are aren as at be because been before being below
between both but by can couldn d did didn do does doesn doing don down during each few for from further
had hadn has hasn have haven having he her here hers herself him himself his i if in into is isn it its
itself just ll m ma me mightn more most mustn my myself needn no nor not now o of off on once only or
other our ours ourselves out over own re s same shan she should shouldn so some such t than that the their
theirs them themselves then there these they this those through to too under until up ve very was wasn we
were weren while will with won wouldn y you your yours yourself yourselves
"""
CHINESE = """
的 地 得 了 着 过 是 不 没 没有 在 有 和 与 及 或 而 且 但 但是 也 都 就 还 又 再 很 太
更 最 把 被 让 给 对 向 从 到 由 于 为 以 因 因为 所以 如果 我 你 您 他 她 它 我们 你们 他们 她们
它们 这 那 这个 那个 这些 那些 什么 怎么 谁 哪 几 个 们 吗 呢 吧 啊 呀 嘛 之 其 将 并 上 下 中 里
要 会 能 可以
"""
STOP_WORDS = frozenset([*ENGLISH.split(), *CHINESE.split()])
