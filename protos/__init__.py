"""The wire contracts and their generated code. `python -m protos.generate` writes the code again."""
