"""What every other room uses: errors, files, YAML, registries, and the data that flows between the parts."""
