"""When a cache pays: what it takes to make and to use, measured on this machine, and the uses after which it has paid."""
