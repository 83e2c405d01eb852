"""Starting the program: a first run, several local processes, clusters."""
