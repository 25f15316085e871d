"""Safe execution of SQL that a model wrote: in a child process, on a copy that can't be written, within limits."""
