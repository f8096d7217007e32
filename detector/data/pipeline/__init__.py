"""The pipeline from records to batches: transforms, samplers, buckets, cache and loader."""
