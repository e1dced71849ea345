"""Texts as unknown callers send them, by kind: what every fuzz test of text draws from."""

from __future__ import annotations

from hypothesis import strategies as st

# Special tokens written out are plain text; so are those of other families, and pieces of them.
SPECIAL = [
    *("[SEP]", "[CLS]", "[PAD]", "[MASK]", "[UNK]", "[sep]", "x[SEP]y", "[SEP][CLS]", "[[SEP]]"),
    *("<s>", "</s>", "<unk>", "<mask>", "<pad>", "[SE P]", "##ing"),
]
# What a reader sees as one character, of several code points (UAX 29).
CLUSTERS = [
    *("e\u0301", "cafe\u0301", "\u0301", "\u2764\ufe0f", "1\ufe0f\u20e3", "\U0001f44d\U0001f3fd"),
    *("\u1112\u1161\u11ab", "\u1112\u1161\u11ab\u1100\u1173\u11af", "각\u11a8"),
    *("\U0001f469\u200d\U0001f680", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "a\u200db"),
    *("\U0001f1e9\U0001f1ea", "\U0001f1e9\U0001f1ea\U0001f1eb", "\u0600a\u0301", "\u0600"),
    *("\u0915\u094d\u0937", "\u0928\u093f", "\u0e01\u0e33", "z" + "\u0351\u036b\u0343" * 9),
]
# With nothing in it to read.
INVISIBLE = [
    *("\u200b", "\u00ad", "\u2060", "\ufeff", "\u200e", "\u3164", "\ufe0f", "\u200d", "\u061c"),
    *("\x00", "\x01", "\x1b", "\x7f", "\x85", " ", "\t", "\n", "\r\n", "\u3000", "\u2028"),
    *("\U000e0041", "\ufff9", "\u180e"),
]
LETTERS = [
    *(
        "Normandy",
        "normandy,",
        "don't",
        "U.S.A.",
        "1,000",
        "é",
        "한국",
        "각",
        "日本",
        "🏛️",
        "İ",
        "ﬁ",
        "ΑΣ",
    ),
    *("\u00a0", "\u2028", "\x0b", "\x1c", "\ufffd", "a" * 120),
]
KINDS = {"special": SPECIAL, "clusters": CLUSTERS, "invisible": INVISIBLE, "letters": LETTERS}

PIECES = st.one_of(*map(st.sampled_from, KINDS.values()), st.text(max_size=20))
TEXT = st.builds(
    str.join, st.sampled_from(["", " ", "\n"]), st.lists(PIECES, min_size=1, max_size=40)
)
UNREADABLE = st.lists(st.sampled_from(INVISIBLE), max_size=20).map("".join)
