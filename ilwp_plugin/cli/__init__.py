"""The command `ilwp`: one module for each group of commands. They parse, call the package and print."""
