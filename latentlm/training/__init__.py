"""Training: text into batches (corpora, data, packing), the loop, its record and its checkpoints."""
