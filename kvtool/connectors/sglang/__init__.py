"""A store's documents in SGLang, as the third level of its hierarchical cache (HiCache).

``storage`` has the class that SGLang loads, and the facts about its interface; ``engine`` asks SGLang which model it has
loaded. Those two import sglang (0.5.23). ``tier`` finds and loads pages, ``pages`` says how they lie in SGLang's memory,
``settings`` what an operator sets.
"""
