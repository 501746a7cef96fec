"""Generators of the field's standard behaviours, one module each. `crosspatch.tasks.builtin` is the way in."""
