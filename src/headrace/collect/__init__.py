"""The doors in: Segment's HTTP protocol, write keys, and the cookie that remembers a visitor."""
