"""The API types of kube3fs.io/v1alpha1 as pydantic models, and the CRDs made from them."""
