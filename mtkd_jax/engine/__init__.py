"""How a population is trained: the step, the loop, layouts over devices."""
