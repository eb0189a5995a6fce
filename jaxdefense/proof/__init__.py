"""The proof: a defended model put to attacks, and to what may happen to it afterwards."""
