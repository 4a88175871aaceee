"""Floor 0: errors, linear algebra, proximal operators, and the frozen values that everything else passes around."""
