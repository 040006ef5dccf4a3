"""What comes over the network and lies on disk: blocks, files, their budgets and their room."""
