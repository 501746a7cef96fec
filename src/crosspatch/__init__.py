"""Crosspatch finds which parts of a language model cause a behaviour, and tests the claim."""
