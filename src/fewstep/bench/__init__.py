"""Problems with known answers, and the measurements that the documentation and the tests share."""
