"""How to read each kind of autograd node: what it saved, turned into rules."""
