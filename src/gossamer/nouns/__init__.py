"""The nouns that travel between the stages: Model, Samples, Budget, Facts, Plan, Record. All frozen."""
