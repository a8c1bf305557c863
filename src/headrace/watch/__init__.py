"""The running loop, watched: judges that take in what happens and say what is wrong, and the book of alerts."""
