"""Finding and describing inputs: files, folders, manifests, labelled clips and shards."""
