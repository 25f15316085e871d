"""From a batch to log-probabilities: the Scorer, its two routes, and the head computed only where a loss looks."""
