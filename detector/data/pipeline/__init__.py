"""From a data set's records to batches: transforms, samplers, buckets, cache, loader."""
