"""The numbers of the tokens that every vocabulary of text has, and that a sequence-to-sequence model knows of."""

PAD = 0  # fills a sentence up; never produced
UNK = 1  # stands for what the vocabulary lacks
BOS = 2  # the first token that a decoder reads
EOS = 3  # ends a sentence, on both sides
SPECIAL = 4  # how many there are: ordinary tokens begin here
