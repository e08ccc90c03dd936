"""The methods of the comparison, VFMGL among them: what each is, its clients and its server."""
