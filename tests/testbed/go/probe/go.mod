module imageprepull.io/testbed/probe

go 1.26.0
