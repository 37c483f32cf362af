"""The linear maps that a network consists of: one file a family of layers."""
