"""`python -m latentlm.cli` is the `latentlm` command."""

from latentlm.cli import main

main()
