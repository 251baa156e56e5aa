"""From a dataset's name to batches: `sources.open_source`, `images.Ops`, `pipeline.Loader`.

The batch of a step is a function of (seed, step) alone; see `pipeline`.
"""
