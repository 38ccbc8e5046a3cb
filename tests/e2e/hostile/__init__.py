"""Programs that run in pods: a tenant that attacks its node, and a neighbour that must not notice."""
