"""Looking for what is wrong with rows: one kind of finding a file, put together in `check`. No weights are needed."""
