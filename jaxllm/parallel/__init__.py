"""The mesh, the two rule tables, and the processes that share them."""
