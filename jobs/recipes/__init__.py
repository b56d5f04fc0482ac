"""Published results, reproduced with Decant: label, store, train. One file a paper, over shared parts."""
