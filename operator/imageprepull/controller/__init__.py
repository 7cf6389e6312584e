"""The operator: kopf events in, assign and render to NodePrepulls, aggregate back into ImagePrepulls."""
