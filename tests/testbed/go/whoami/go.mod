module imageprepull.io/testbed/whoami

go 1.26.0
