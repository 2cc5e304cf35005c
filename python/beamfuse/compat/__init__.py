"""Classes in the shape of other engines'."""
