"""The routes, a file a resource: what HTTP clients call, in the order of the OpenAPI document."""
