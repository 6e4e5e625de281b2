"""Bad input of every kind, each in a process of its own, and what must not come of it: `make hostile`."""
