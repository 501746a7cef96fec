"""Benchmarks of Crosspatch against its peers. They run in an environment of their own and are no part of the tests."""
