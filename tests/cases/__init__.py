"""What each branch of the tree is tested with. A module here may hold:

`CASES`: name -> (reference class, config class, config fields), tiny models that `oracle.reference` makes and jitters;
`extra(case, batch, generator)`: returns the batch with what this branch reads beside ids and mask, or changed;
`COUNTS`: size -> exact parameters of the family's own heads; `BODIES`: the same with the pooler as the only head.
"""
