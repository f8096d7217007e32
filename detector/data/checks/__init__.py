"""What is wrong or odd with a data set."""
