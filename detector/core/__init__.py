"""The modules that all other rooms use: errors, files, YAML, registries, and the data that the parts exchange."""
