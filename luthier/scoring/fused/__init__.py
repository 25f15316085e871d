"""Parts of a model computed in fewer passes than module by module: autograd functions, chosen anew at every call."""
