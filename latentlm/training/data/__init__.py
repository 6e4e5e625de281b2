"""Text into batches, the same for every model.

    corpora     documents from the standard library, files, folders and data sets
    parting     held out or trained on
    tokenizing  the tokenizer of a recipe
    packing     windows packed into rows, rows into numbered batches
    shards      tokens in files that are mapped, for data larger than memory
    prepared    all of it, in memory or in shards
    synthetic   texts whose density is known
    prompted    a share of the rows with a prompt
"""

from latentlm.training.data.corpora import Document, numbered_lines, read_corpus
from latentlm.training.data.packing import PackedStream, TokenStore, Window
from latentlm.training.data.prepared import EVALUATED, Corpus, HeldOut, Prepared, load_documents, prepare
from latentlm.training.data.prompted import with_prompts

__all__ = [
    "EVALUATED", "Corpus", "Document", "HeldOut", "PackedStream", "Prepared", "TokenStore", "Window", "load_documents",
    "numbered_lines", "prepare", "read_corpus", "with_prompts",
]  # fmt: skip
