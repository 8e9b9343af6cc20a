"""One module for each group of commands; each command calls the API and shows the answer, and decides nothing."""
