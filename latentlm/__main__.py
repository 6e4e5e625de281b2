"""`python -m latentlm` is the `latentlm` command, and `torchrun ... -m latentlm train RECIPE` trains on several processes."""

from latentlm.cli import main

main()
