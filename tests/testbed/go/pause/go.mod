module imageprepull.io/testbed/pause

go 1.26.0
